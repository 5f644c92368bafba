package node

import (
	"fmt"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/control"
	"github.com/volant-edge/volant/host"
)

// appInside is an app as its machines' guests are told of it, secrets in the clear.
func (p *Platform) appInside(id volant.AppID) (host.App, error) {
	snap := p.cat.Snapshot()
	a, ok := snap.App(id)
	if !ok {
		return host.App{}, nil
	}
	app := host.App{Name: a.Name, PrimaryRegion: a.PrimaryRegion}
	rec, ok := snap.Secrets(id)
	if !ok {
		return app, nil
	}
	app.Secrets = make(map[string]string, len(rec.Values))
	for name, s := range rec.Values {
		plain, err := p.Secrets.Open(control.SecretPlace(id, name), s.Sealed)
		if err != nil {
			return app, fmt.Errorf("secret %s: %w", name, err)
		}
		app.Secrets[name] = string(plain)
	}
	return app, nil
}
