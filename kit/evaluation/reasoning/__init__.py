"""Automatic measures of how a solution reasons."""
