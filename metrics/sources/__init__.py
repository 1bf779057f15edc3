"""What is measured: generated clips, folders of videos, stored views."""
