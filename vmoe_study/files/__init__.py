"""Files on local disks and object stores: locating, reading, atomic writing."""
