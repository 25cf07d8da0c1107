"""Plain tables of interactions, as loggers, data frames and most public data sets have them.

    columns     which column is the user, the item, the time: the usual names, and the usual files without a header
    sources     files (csv, tsv, ::, json lines, parquet, each also gzipped), data frames and rows, in batches
    values      cells as ids, times and numbers
    importing   batches to histories: filters, order in time, repeats, k-core
    items       titles and metadata from a second file
    folder      the folder that `earn import` writes, and its reader

What a caller may choose (columns, filters, repeats, ties) stands in earn.data.import_options, and what every reader
gives in earn.data.interactions.

pyarrow does the work (extra `tables`). Users and items become int32 codes batch by batch, so that memory is 16 bytes
per interaction and the ids themselves.
"""
