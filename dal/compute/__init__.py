"""The connection to Dask: clients, the local cluster, work that is shared out, and waits that end."""
