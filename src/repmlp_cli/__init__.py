"""The command `repmlp`. A package beside `repmlp`, since importing that imports PyTorch, which takes seconds."""


def main() -> None:
    raise SystemExit("not yet")
