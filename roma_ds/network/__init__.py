"""A network whose routers are read live, and the forms of its frozen parts."""
