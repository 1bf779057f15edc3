"""Networks that metrics look through: features of pictures and clips, faces and their identity."""
