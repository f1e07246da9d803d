"""How jobs run on a cluster: the only room that knows Ray. One file per job."""
