"""A model's weights in another form: the same function as another architecture, or fewer of its layers."""
