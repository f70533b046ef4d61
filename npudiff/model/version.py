"""The version of npudiff; the package and the wheel take it from here."""

VERSION = "0.1.0"
