"""From a module to an FX graph of its own forward, in which one layer is one node."""
