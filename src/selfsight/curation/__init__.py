"""What a collection holds that deserves a look: items unlike the others."""
