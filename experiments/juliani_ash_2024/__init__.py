"""The study of Juliani & Ash (2024), on top of the library."""
