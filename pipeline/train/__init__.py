"""Distillation of the cached teacher into the student."""
