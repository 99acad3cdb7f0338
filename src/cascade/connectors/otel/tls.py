"""TLS settings of the connection to a collector."""

import contextlib
import ssl
from collections.abc import Iterator

from cascade.connectors.otel.options import ExportOptions


def tls_context(options: ExportOptions) -> ssl.SSLContext:
    """Return the context for the certificates of the options.

    Raises:
        OSError: A certificate or key cannot be loaded. An encrypted key cannot, because OpenSSL reads its password from
            the terminal.
    """
    with _naming("certificate", options.certificate):
        context = ssl.create_default_context(cafile=options.certificate)
    if options.certificate is None:
        # Slim images have no certificates of their own; the SDK's exporter brings these.
        with contextlib.suppress(ImportError):
            import certifi

            context.load_verify_locations(certifi.where())
    if options.client_certificate:
        with _naming("client certificate and key", f"{options.client_certificate}, {options.client_key}"):
            context.load_cert_chain(options.client_certificate, options.client_key, password="")
    return context


@contextlib.contextmanager
def _naming(subject: str, files: str | None) -> Iterator[None]:
    """Add the names of the files to an error of OpenSSL, whose text has none."""
    try:
        yield
    except OSError as error:
        raise OSError(f"the {subject} cannot be loaded from {files}: {error}") from error
