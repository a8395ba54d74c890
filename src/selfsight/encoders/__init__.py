"""timm models behind one interface."""
