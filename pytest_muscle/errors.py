"""The one exception that pytest-muscle raises for anything a user can mend."""


class MuscleError(Exception):
    """Bad input or an impossible request.

    The message names the file, the line or key, what is wrong and the remedy; it is shown as it
    stands, without a traceback.
    """
