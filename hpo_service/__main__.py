"""`python -m hpo_service` is `hpo`."""

from hpo_service.cli import main

if __name__ == "__main__":
    main()
