// Package initbin carries the guest's PID 1, built of guest/cmd/init, into the volant binary.
package initbin

import (
	"embed"
	"fmt"

	"github.com/volant-edge/volant"
)

//go:embed bin
var files embed.FS

// Bytes is the binary.
func Bytes() ([]byte, error) {
	b, err := files.ReadFile("bin/volant-init")
	if err != nil {
		return nil, fmt.Errorf("guest init: %w", volant.Errorf(volant.ErrPrecondition,
			"this binary was built without the guest's init").WithRemedy("build it with `make build`"))
	}
	return b, nil
}
