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


class _Forward(_Parallel):
    """What a forward pass is told."""

    def scoped(self, **values):
        return self.override(**values)


_CONTEXT, _PARALLEL, _FORWARD = _Context(), _Parallel(), _Forward(sp_active=False)


def get_context():
    return _CONTEXT


def get_parallel():
    return _PARALLEL


def get_forward():
    return _FORWARD
