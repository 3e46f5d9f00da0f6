"""A trained adapter in the file formats of other programs; `inlay.adapters.exports.table` lists them."""
