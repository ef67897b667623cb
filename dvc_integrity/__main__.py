"""``python -m dvc_integrity``: the command line."""

from dvc_integrity.cli import main

main()
