"""Exceptions of the data sets: what is wrong with the files or the request, and how to mend it."""

from __future__ import annotations

from recipes._errors import RecipeError


class DataError(RecipeError):
    """A data set cannot be used as asked: its files are not what they should be, or the request does not fit it."""


class MissingDataError(DataError):
    """A data set, or a library that makes one, is not there; the message has the command or the path that gets it."""
