"""Finding, cutting, embedding and searching code: discover, decode, chunk, encoder, segments, index, search."""
