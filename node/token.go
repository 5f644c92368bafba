package node

import (
	"errors"
	"os"
	"strings"

	"github.com/volant-edge/volant/control"
	"github.com/volant-edge/volant/internal/atomicfile"
)

// rootToken reads the root token's file, and makes it at the first start. Who can read the file is root.
func (s *server) rootToken() (string, error) {
	path := s.dir.Path("root.token")
	b, err := os.ReadFile(path)
	if err == nil && len(strings.TrimSpace(string(b))) >= 32 {
		return strings.TrimSpace(string(b)), nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	token := control.NewToken()
	return token, atomicfile.Write(path, []byte(token+"\n"), 0o600)
}
