"""Alembic's migrations of our own tables and views."""
