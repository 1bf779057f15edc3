"""Networks that metrics look through: features of images and clips, faces and their identity."""
