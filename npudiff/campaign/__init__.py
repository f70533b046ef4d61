"""Campaigns: a search of hours or days in rounds, which keeps what it learned in a folder and can end at any moment."""
