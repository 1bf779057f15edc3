"""Operators: one public function each, with a plain reference beside it that is the definition."""
