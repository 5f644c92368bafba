package host

// DecodeRecord reads a record as the journal does.
func DecodeRecord(b []byte) error {
	_, err := decodeRecord(b)
	return err
}

// ReadLog reads a log's file and returns the texts of its lines.
func ReadLog(path string) []string {
	var texts []string
	for _, l := range readLog(path) {
		texts = append(texts, l.Text)
	}
	return texts
}
