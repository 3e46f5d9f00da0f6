"""What a base is trained to do: how its model is loaded, its rows encoded, its loss computed."""
