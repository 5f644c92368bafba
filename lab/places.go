package lab

import (
	"math"
	"slices"
	"time"
)

// Place is where a region is.
type Place struct {
	Code, Name string
	Lat, Long  float64 // degrees; north and east are positive
}

// Places are the regions whose distances are known.
func Places() []Place {
	return []Place{
		{"ams", "Amsterdam", 52.37, 4.90},
		{"arn", "Stockholm", 59.33, 18.07},
		{"atl", "Atlanta", 33.75, -84.39},
		{"bog", "Bogotá", 4.71, -74.07},
		{"bom", "Mumbai", 19.08, 72.88},
		{"bos", "Boston", 42.36, -71.06},
		{"cdg", "Paris", 48.86, 2.35},
		{"den", "Denver", 39.74, -104.99},
		{"dfw", "Dallas", 32.78, -96.80},
		{"ewr", "Secaucus", 40.79, -74.06},
		{"eze", "Buenos Aires", -34.60, -58.38},
		{"fra", "Frankfurt", 50.11, 8.68},
		{"gru", "São Paulo", -23.55, -46.63},
		{"hkg", "Hong Kong", 22.32, 114.17},
		{"iad", "Ashburn", 39.04, -77.49},
		{"jnb", "Johannesburg", -26.20, 28.05},
		{"lax", "Los Angeles", 34.05, -118.24},
		{"lhr", "London", 51.51, -0.13},
		{"mad", "Madrid", 40.42, -3.70},
		{"mia", "Miami", 25.76, -80.19},
		{"nrt", "Tokyo", 35.68, 139.69},
		{"ord", "Chicago", 41.88, -87.63},
		{"otp", "Bucharest", 44.43, 26.10},
		{"phx", "Phoenix", 33.45, -112.07},
		{"scl", "Santiago", -33.45, -70.67},
		{"sea", "Seattle", 47.61, -122.33},
		{"sin", "Singapore", 1.35, 103.82},
		{"sjc", "San José", 37.34, -121.89},
		{"syd", "Sydney", -33.87, 151.21},
		{"waw", "Warsaw", 52.23, 21.01},
		{"yul", "Montréal", 45.50, -73.57},
		{"yyz", "Toronto", 43.65, -79.38},
	}
}

// PlaceOf finds a region by its code.
func PlaceOf(code string) (Place, bool) {
	ps := Places()
	i := slices.IndexFunc(ps, func(p Place) bool { return p.Code == code })
	if i < 0 {
		return Place{}, false
	}
	return ps[i], true
}

const (
	earthRadius = 6371.0 // km
	fibreSpeed  = 204.0  // km in a millisecond
	detour      = 1.5    // cables are that much longer than the great circle
)

// delay is how long light takes in fibre from one place to another.
func (p Place) delay(q Place) time.Duration {
	rad := func(deg float64) float64 { return deg * math.Pi / 180 }
	sin2 := func(x float64) float64 { return math.Sin(x/2) * math.Sin(x/2) }
	h := sin2(rad(q.Lat-p.Lat)) + math.Cos(rad(p.Lat))*math.Cos(rad(q.Lat))*sin2(rad(q.Long-p.Long))
	km := 2 * earthRadius * math.Asin(math.Sqrt(h))
	ms := km * detour / fibreSpeed
	return time.Duration(math.Round(ms*10)) * 100 * time.Microsecond
}
