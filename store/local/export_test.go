package local

// Pack and Unpack are for tests of the file's records.
var (
	Pack   = pack
	Unpack = unpack
)
