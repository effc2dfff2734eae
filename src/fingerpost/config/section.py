"""What all sections of the configuration are made of, and the checks that several of them share."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from fingerpost.upstreams.openai import parse_url


class Section(BaseModel):
    """What all sections share: unknown keys are errors, values cannot change."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_truth(cls, value: Any, info: ValidationInfo) -> Any:
        """Pydantic takes `yes` for the number 1."""
        wanted = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and wanted in (int, float, int | None, float | None):
            raise ValueError("this should be a number, not true or false")
        return value


def base_url(url: str) -> str:
    """`url` without a slash at its end, if it can be the base of an API."""
    if not re.match(r"https?://[^\s/?#]+", url) or re.search(r"[\s?#]", url):
        raise ValueError("not an http or https base URL without query; write one such as https://api.openai.com/v1")
    parse_url(url)
    return url.rstrip("/")


def one_line(value: str) -> str:
    """`value`, if it can be sent in a header."""
    if not value.isprintable():
        raise ValueError("holds a line break or another control character; check the variable that it comes from")
    return value
