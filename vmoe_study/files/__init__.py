"""Files on local disks and remote stores: finding them, writing them whole."""
