"""What several callbacks have in common; the callbacks themselves never import each other."""
