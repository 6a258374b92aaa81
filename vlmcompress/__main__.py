"""`python -m vlmcompress`, which `accelerate launch --module` needs."""

from vlmcompress.cli import main

if __name__ == "__main__":
    main()
