"""How a weight is rounded when nearest is not best."""
