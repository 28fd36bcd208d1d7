"""The one exception of the experiments."""

__all__ = ["UserError"]


class UserError(ValueError):
    """Something the person at the keyboard can put right, said in one sentence with the cure.

    The command line prints it without a traceback; everything else that goes wrong keeps its own.
    """
