"""``python -m ggq`` is the command ``ggq``."""

from ggq.cli.main import main

main()
