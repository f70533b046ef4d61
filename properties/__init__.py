"""What must hold: cases, strategies and properties, one module or package per component."""
