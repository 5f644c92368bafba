package volant_test

import (
	"errors"
	"testing"

	volant "github.com/volant-edge/volant"
)

func TestFilesThatAreWrong(t *testing.T) {
	for _, f := range []volant.File{
		{GuestPath: "a", RawValue: "YQ=="},
		{GuestPath: "/a/../b", RawValue: "YQ=="},
		{GuestPath: "/a"},
		{GuestPath: "/a", RawValue: "YQ==", SecretName: "A"},
		{GuestPath: "/a", RawValue: "%"},
		{GuestPath: "/a", SecretName: "A", Mode: 0o4755},
		{GuestPath: "/proc/a", SecretName: "A"},
	} {
		if err := f.Check(); !errors.Is(err, volant.ErrInvalid) {
			t.Errorf("%+v: %v", f, err)
		}
	}
	good := volant.File{GuestPath: "/etc/app/key", RawValue: "YQ==", Mode: 0o400}
	if err := good.Check(); err != nil {
		t.Error(err)
	}
}
