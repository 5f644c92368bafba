package datadir

// Migration lets tests open directories of formats that do not exist yet.
type Migration struct {
	To  int
	Run func(root string) error
}

// OpenAt is Open of a binary which writes the given format.
func OpenAt(root string, format int, ms ...Migration) (*Dir, error) {
	var list []migration
	for _, m := range ms {
		list = append(list, migration{m.To, m.Run})
	}
	return open(root, format, list)
}
