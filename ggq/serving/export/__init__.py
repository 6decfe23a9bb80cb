"""Handing a GGUF over to other programs: what each of them wants to find, with what was chosen for it."""

from ggq.serving.export.bundle import Bundle, Request, write
from ggq.serving.export.targets import Target, bundle_for

__all__ = ["Bundle", "Request", "Target", "bundle_for", "write"]
