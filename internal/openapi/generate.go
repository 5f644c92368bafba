package openapi

import (
	"path/filepath"

	"github.com/volant-edge/volant/control"
)

// Generate makes the document from the source tree at root.
func Generate(root string) ([]byte, error) {
	docs, err := ReadDocs(map[string]string{
		"volant": root, "api": filepath.Join(root, "api"), "why": filepath.Join(root, "why"),
	})
	if err != nil {
		return nil, err
	}
	return Build((*control.Server)(nil).Routes(), docs)
}
