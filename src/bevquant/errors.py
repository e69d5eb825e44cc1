"""The one error class that bevquant raises for something the user can mend."""


class BevquantError(Exception):
    """Bad input or an impossible request.

    The message is one line that names the file, the field and the mend. The command
    line prints it without a traceback and exits with code 2.
    """
