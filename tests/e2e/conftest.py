"""The small run of the integration tests serves here too."""

from tests.integration.conftest import colours, make_config, mlflow_tables

__all__ = ["colours", "make_config", "mlflow_tables"]
