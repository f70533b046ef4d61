"""What a process of the server knows: its arguments, and its place among the ranks."""

import contextlib
from types import SimpleNamespace


class _Arguments(SimpleNamespace):
    def install(self):
        _CONTEXT.server_args = self


class _Context:
    server_args = _Arguments(device="npu", page_size=1)

    def override_server_args(self, **values):
        return _Arguments(**{**vars(self.server_args), **values})

    def override(self, source, **values):
        vars(self).update(values)


class _Parallel(SimpleNamespace):
    def override_permanently(self, **values):
        vars(self).update(values)

    @contextlib.contextmanager
    def override(self, **values):
        before = dict(vars(self))
        vars(self).update(values)
        try:
            yield
        finally:
            vars(self).clear()
            vars(self).update(before)


_CONTEXT, _PARALLEL = _Context(), _Parallel()


def get_context():
    return _CONTEXT


def get_parallel():
    return _PARALLEL
