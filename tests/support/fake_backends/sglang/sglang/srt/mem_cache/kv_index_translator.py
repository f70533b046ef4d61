"""Between slots of requests and slots of a pool, which are the same here."""


class KVIndexTranslator:
    """Nothing to translate."""

    def __init__(self, **_):
        pass
