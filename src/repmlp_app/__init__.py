"""The page of `repmlp explore`: ``views`` asks the library for rows, sentences and pictures, ``page`` lays them out."""
