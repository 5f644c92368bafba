package host

import (
	"encoding/base64"
	"maps"
	"slices"
	"strings"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/guest"
)

const defaultFileMode = 0o644

// secretsOf are the app's secrets as far as the machine gets them.
func secretsOf(w *volant.Machine, app App) map[string]string {
	if w.SkipSecrets {
		return nil
	}
	return app.Secrets
}

// guestFiles are the files a machine's guest gets before its app starts.
func guestFiles(w *volant.Machine, app App) ([]guest.File, error) {
	var out []guest.File
	for _, f := range w.Config.Files {
		value := f.RawValue
		if f.SecretName != "" {
			v, ok := secretsOf(w, app)[f.SecretName]
			if !ok {
				return nil, noSecret(f, w, app)
			}
			value = v
		}
		data, err := base64.StdEncoding.DecodeString(strings.TrimSpace(value))
		if err != nil {
			return nil, notBase64(f)
		}
		g := guest.File{Path: f.GuestPath, Mode: f.Mode, Data: data}
		if g.Mode == 0 {
			g.Mode = defaultFileMode
		}
		if err := g.Check(); err != nil {
			return nil, err
		}
		out = append(out, g)
	}
	return out, nil
}

func noSecret(f volant.File, w *volant.Machine, app App) error {
	have := slices.Sorted(maps.Keys(secretsOf(w, app)))
	e := volant.Errorf(volant.ErrPrecondition, "file %s: app %s has no secret %s", f.GuestPath, app.Name, f.SecretName)
	if len(have) == 0 {
		return e.WithRemedy("set it with `volant secrets set %s=… --app %s`; the app has none yet", f.SecretName, app.Name)
	}
	return e.WithRemedy("set it with `volant secrets set %s=… --app %s`, or use one of %s", f.SecretName, app.Name, strings.Join(have[:min(len(have), 10)], ", "))
}

// notBase64 does not repeat the value, which may be a secret.
func notBase64(f volant.File) error {
	if f.SecretName != "" {
		return volant.Errorf(volant.ErrPrecondition, "file %s: the value of secret %s is not base64", f.GuestPath, f.SecretName).
			WithRemedy("set it to what `base64 -w0 FILE` prints")
	}
	return volant.Errorf(volant.ErrPrecondition, "file %s: raw_value is not base64", f.GuestPath).
		WithRemedy("write what `base64 -w0 FILE` prints")
}
