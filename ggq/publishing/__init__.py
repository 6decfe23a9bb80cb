"""Showing and giving away what was made: the report page, the model card, the upload."""
